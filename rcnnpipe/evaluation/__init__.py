"""How good detections and proposals are: VOC and COCO average precision, recall, curves."""
