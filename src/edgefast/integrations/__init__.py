"""edgefast inside other libraries: one module each, imported only on use. The libraries are extras."""
