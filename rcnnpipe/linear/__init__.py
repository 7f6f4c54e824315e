"""Linear models on cached features: the SVM and the ridge regression of boxes."""
