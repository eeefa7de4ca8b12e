NO_FINDING = 'No Finding'  # the label of images without any of the others
