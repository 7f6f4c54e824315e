"""Average precision and recall by the rules of VOC and COCO."""
