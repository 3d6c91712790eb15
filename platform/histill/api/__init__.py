"""The use cases of histill as Python functions; `import histill` offers them all."""
