"""What the control plane decides. Services call the store; they know no HTTP and write no SQL."""
