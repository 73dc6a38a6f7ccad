//! Records about tablespaces (commands/tablespace.h).
//!
//! ```text
//! 0x00 created     u32 tablespace; the absolute path of its folder, ending in a zero, or
//!                  just that for one in the data directory
//! 0x10 dropped     u32 tablespace
//! ```

use super::record::{OPERATION, Record, ResourceManager};
use crate::error::Result;

const CREATED: u8 = 0x00;
const PATH: usize = 4;

/// The folder of a tablespace that was created outside of the data directory; nothing if a record is about
/// something else, an error if it is too short for what it is.
pub fn created_tablespace(record: &Record<'_>) -> Result<Option<String>> {
    let is_created = record.resource_manager == ResourceManager::TABLESPACE
        && record.info & OPERATION == CREATED;
    if !is_created {
        return Ok(None);
    }
    let path = record.main_data.get(PATH..).and_then(|path| {
        let end = path.iter().position(|byte| *byte == 0)?;
        Some(String::from_utf8_lossy(&path[..end]).into_owned())
    });
    let path = path.ok_or_else(|| record.too_short())?;
    Ok(Some(path).filter(|path| !path.is_empty()))
}
