"""Images and their annotations, read through a recipe or a recognised folder."""
