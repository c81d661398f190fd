"""What Linux does on bare metal: the host of the virtual machines."""
