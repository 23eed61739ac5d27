//! The TFRecord framing of event files: length, checksum of the length, data, checksum of the data.
//! Integers are little-endian.

use std::io::{Result, Write};

use crc_fast::CrcAlgorithm;
use prost::Message;

/// Writes one record.
///
/// # Errors
/// The output cannot be written.
pub fn write_record(out: &mut impl Write, message: &impl Message) -> Result<()> {
    let bytes = message.encode_to_vec();
    let length = (bytes.len() as u64).to_le_bytes();
    out.write_all(&length)?;
    out.write_all(&masked_crc(&length).to_le_bytes())?;
    out.write_all(&bytes)?;
    out.write_all(&masked_crc(&bytes).to_le_bytes())
}

/// The CRC-32C, masked as TFRecord requires it: the data may contain checksums themselves.
fn masked_crc(bytes: &[u8]) -> u32 {
    // The function returns the 32-bit checksum as 64 bits.
    let sum = crc_fast::checksum(CrcAlgorithm::Crc32Iscsi, bytes) as u32;
    sum.rotate_right(15).wrapping_add(0xa282_ead8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_are_crc_32c() {
        // The values of RFC 3720, B.4, and the check value of the catalogue of CRCs.
        let ascending: Vec<u8> = (0..32).collect();
        let checksums = [(&[0; 32][..], 0x8a91_36aa), (&[0xff; 32], 0x62a8_ab43), (&ascending, 0x46dd_794e)];
        for (bytes, sum) in checksums.into_iter().chain([(&b"123456789"[..], 0xe306_9283)]) {
            assert_eq!(crc_fast::checksum(CrcAlgorithm::Crc32Iscsi, bytes), sum);
        }
        assert_eq!(masked_crc(b"123456789"), 0xc78a_b0e5);
    }

    #[test]
    fn a_record_has_tensorflows_framing() {
        // The first record of every event file of TensorFlow, with the time 0.
        let event = super::super::event::Event::version(0.0);
        let mut record = Vec::new();
        write_record(&mut record, &event).unwrap();
        assert_eq!(record[..8], 15_u64.to_le_bytes());
        assert_eq!(record[12..27], *b"\x1a\x0dbrain.Event:2");
        assert_eq!(record[8..12], masked_crc(&record[..8]).to_le_bytes());
        assert_eq!(record[27..], masked_crc(&record[12..27]).to_le_bytes());
    }
}
