//! Throw-away servers that rehearsals restore into.
