"""One file per optimization. The order in which they are climbed is `optim_ladder.ladder.LADDER`."""
