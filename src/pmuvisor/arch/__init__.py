"""What the architecture says; knows no Linux and no KVM."""
