"""The shipped specs: data only, a `.nl` file each; memories and optimizers in their folders."""
