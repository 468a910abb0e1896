//! What is refused, each with its line, key and hint.
