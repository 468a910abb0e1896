//! age recipients and identities, parsed and checked.
