"""Running MIL: the device interface and the devices behind it."""
