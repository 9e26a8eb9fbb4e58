"""The forecaster that ships: its zoo, its fit, and what it is worth on families that the zoo does not hold."""
