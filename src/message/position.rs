//! Where a record stands: topic, partition and offset.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use uuid::Uuid;

/// The UUIDv5 namespace of derived ids (RFC 9562).
const NAMESPACE: Uuid = Uuid::from_u128(0x6f1d_b7a0_52c4_5e0f_9a3b_7d1c_4e8f_2b60);

/// Where a record stands; `topic/partition/offset` as text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourcePosition {
    pub topic: Arc<str>,
    pub partition: i32,
    pub offset: i64,
}

impl SourcePosition {
    /// The derived id of the image at `index` of this message.
    pub fn id(&self, index: usize) -> String {
        let name = format!("{self}/{index}");
        Uuid::new_v5(&NAMESPACE, name.as_bytes()).to_string()
    }
}

impl fmt::Display for SourcePosition {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}/{}", self.topic, self.partition, self.offset)
    }
}

impl FromStr for SourcePosition {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        // A topic's name has no slash.
        let parts: Vec<&str> = text.split('/').collect();
        let [topic, partition, offset] = parts[..] else { return Err(()) };
        Ok(Self {
            topic: topic.into(),
            partition: partition.parse().map_err(|_| ())?,
            offset: offset.parse().map_err(|_| ())?,
        })
    }
}
