"""From a folder or archive of photos to batches of pixels on the device."""
