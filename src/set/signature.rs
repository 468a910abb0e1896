//! minisign signatures of manifests and verification records.
