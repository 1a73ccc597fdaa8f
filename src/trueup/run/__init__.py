"""DOING: the only room for hooks, optimisers, devices and no_grad."""
