"""What KVM adds to the host kernel."""
