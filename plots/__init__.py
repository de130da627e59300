"""Charts and tables drawn from records alone. Never imports torch, and loads matplotlib only to draw."""
