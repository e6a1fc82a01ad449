"""Verbs that bring a model to other people: to the Hub, into a registry."""
