//! Pieces of a sealed stream into objects.

use tokio::sync::mpsc;

use super::Piece;
use crate::error::{Error, Result};
use crate::set::manifest::Object;
use crate::store::{self, Store, StoreError, Upload};

/// Drains pieces into objects `<prefix><key>`, `<prefix><key>.001`, …; returns them once the stream
/// said that it is whole. `None` means that the writer gave up, and the object that was being written
/// was aborted; the writer knows why.
pub async fn upload(
    store: &dyn Store,
    prefix: &str,
    key: &str,
    mut pieces: mpsc::Receiver<Piece>,
    progress: impl Fn(u64),
) -> Result<Option<Vec<Object>>> {
    let mut objects: Vec<Object> = Vec::new();
    let mut current: Option<Box<dyn Upload>> = None;
    while let Some(piece) = pieces.recv().await {
        let key = if objects.is_empty() { key.to_owned() } else { format!("{key}.{:03}", objects.len()) };
        let full = format!("{prefix}{key}");
        match piece {
            Piece::Part(part) => {
                let upload = match &mut current {
                    Some(upload) => upload,
                    None => current
                        .insert(store.begin(&full, false).await.map_err(|e| unwritten(store, &full, e))?),
                };
                let n = part.len() as u64;
                upload.put_part(part).await.map_err(|e| unwritten(store, &full, e))?;
                progress(n);
            }
            Piece::End { size, sha256, header } => {
                let upload = current.take().ok_or_else(|| Error::new("empty object"))?;
                upload.commit(size).await.map_err(|e| unwritten(store, &full, e))?;
                objects.push(Object { key, size, sha256, header });
            }
            Piece::Finished => return Ok(Some(objects)),
        }
    }
    if let Some(upload) = current {
        upload.abort().await;
    }
    Ok(None)
}

fn unwritten(store: &dyn Store, key: &str, error: StoreError) -> Error {
    let context = store::writing(store, key, &error);
    Error::from(error).context(context)
}
