//! Which client tools to use, and how they are started.
