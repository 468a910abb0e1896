//! Connecting with tokio-postgres under resolved libpq settings.
