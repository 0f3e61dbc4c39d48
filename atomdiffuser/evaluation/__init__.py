"""How well estimates of drift and decay agree with simulated truth; knows methods by what they return, not how they work."""
