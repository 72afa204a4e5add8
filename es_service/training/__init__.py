"""Training with a Selector: per-sample losses, the selective loader, the loop, and Ray Train around it. Needs torch."""
