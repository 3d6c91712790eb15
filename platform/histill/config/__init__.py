"""Typed job configurations: strict YAML files plus dotted overrides."""
