//! One table's archive, read out of one that holds several: what [`super::split`] hands on, as a reader.

use std::io::{self, Read};

use super::split::{Piece, Splitter, To};

/// Bytes read at a time.
const READ_SIZE: usize = 128 << 10;

/// Reads the whole archive, and gives one table's.
pub struct Cut<R> {
    archive: R,
    /// `None` once the archive was read to its end.
    splitter: Option<Splitter>,
    chunk: Vec<u8>,
    /// Bytes of the table's archive that nobody took yet.
    bytes: Vec<u8>,
    taken: usize,
}

impl<R: Read> Cut<R> {
    /// The archive of this table, by schema and name.
    pub fn new(archive: R, table: (String, String)) -> Self {
        let splitter = Some(Splitter::new(vec![table], true));
        Self { archive, splitter, chunk: vec![0; READ_SIZE], bytes: Vec::new(), taken: 0 }
    }
}

impl<R: Read> Read for Cut<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.taken == self.bytes.len() {
            let Some(mut splitter) = self.splitter.take() else { return Ok(0) };
            self.bytes.clear();
            self.taken = 0;
            let bytes = &mut self.bytes;
            let mut keep = |piece: Piece<'_>| {
                if let Piece::Bytes(To::Table(_), piece) = piece {
                    bytes.extend_from_slice(piece);
                }
                Ok(())
            };
            match self.archive.read(&mut self.chunk)? {
                0 => splitter.finish(&mut keep).map_err(io::Error::other)?,
                n => {
                    splitter.feed(&self.chunk[..n], &mut keep).map_err(io::Error::other)?;
                    self.splitter = Some(splitter);
                }
            }
        }
        let n = buffer.len().min(self.bytes.len() - self.taken);
        buffer[..n].copy_from_slice(&self.bytes[self.taken..self.taken + n]);
        self.taken += n;
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::set::archive::made::{Body, archive, item, rows};
    use crate::set::archive::rows::open;

    #[test]
    fn a_tables_archive_is_read_out_of_anothers() {
        let items = [
            item(1, "ENCODING", "ENCODING", Body::None),
            item(2, "TABLE DATA", "a", rows(&[b"1", b"2"], 1)),
            item(3, "TABLE DATA", "b", rows(&[&[b'x'; 300_000], b"4"], 70_000)),
            item(4, "TABLE DATA", "c", rows(&[b"5"], 9)),
        ];
        let whole = archive(16, &items);
        let cut = |bytes: &'static str| ("public".to_owned(), bytes.to_owned());
        let mut alone = Vec::new();
        Cut::new(&whole[..], cut("b")).read_to_end(&mut alone).unwrap();
        assert_eq!(alone, archive(16, &[items[0].clone(), items[2].clone()]));
        assert!(Cut::new(&whole[..whole.len() - 1], cut("b")).read_to_end(&mut alone).is_err(), "cut off");
        assert!(Cut::new(&whole[..], cut("missing")).read_to_end(&mut alone).is_err());
        assert!(open(&alone[..]).is_ok());
    }
}
