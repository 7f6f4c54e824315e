"""What networks make of regions: from warped windows, or from maps of whole images."""
