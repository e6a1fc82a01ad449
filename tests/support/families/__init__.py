"""Every type of model that transformers maps from image and text to text, built tiny and tried: `make families`.

`shrinking` makes a type's configuration small by rules, `shapes` is the table of what the rules do not know of a type,
`processors` gives it a processor of its own class, `trial` trains and reloads it, `page` writes docs/families.md.
"""
