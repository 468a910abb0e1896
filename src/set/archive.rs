//! pg_dump custom archives: parsing and fingerprinting as they pass.
