"""The shipped specs: data only, one `.nl` file each; memories in `memory/`, optimizers in `optim/`."""
