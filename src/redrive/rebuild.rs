//! Rebuilds the reference of a dead letter: the original key, payload and headers, byte for byte,
//! with the headers that mark it as redriven. For a message with several images it is a request for
//! the image that failed, since the whole message would caption the others twice.

use std::borrow::Cow;
use std::ops::ControlFlow;

use rdkafka::message::Message as _;

use crate::config::Kafka;
use crate::error::Result;
use crate::message::{
    self, DeadLetter, ImageRequest, Marker, RawHeader, RawRecord, SourcePosition, header,
};
use crate::reader::{End, Ranges, Reader};
use crate::redrive::formats::Formats;
use crate::registry::Encoder;

/// Why a letter can't be put back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    Gone,
    Damaged,
    TooLarge,
}

/// Headers of a redriven reference; they are replaced when it is redriven again.
const OWN_HEADERS: [&str; 3] = [header::REDRIVEN_FROM, header::REDRIVEN_TIMES, header::REDRIVEN_ID];

/// Bytes of a record beside key, payload and headers.
const FRAME: usize = 256;
/// librdkafka's default of `message.max.bytes`.
const MAX_BYTES: usize = 1_000_000;

/// The records that put one letter back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rebuilt {
    pub code: String,
    /// Partition of the input topic; None where the original one no longer exists.
    pub partition: Option<i32>,
    pub reference: RawRecord,
    /// The letter's position.
    pub position: SourcePosition,
    pub marker: RawRecord,
}

impl Rebuilt {
    pub fn bytes(&self) -> usize {
        record_size(&self.reference).saturating_add(record_size(&self.marker))
    }
}

/// Rebuilds references; reads originals that were left out at their source.
pub struct Rebuilder<'f> {
    formats: &'f Formats,
    topic: String,
    partitions: Vec<i32>,
    max_bytes: usize,
    source: Reader,
}

impl<'f> Rebuilder<'f> {
    pub fn new(kafka: &Kafka, formats: &'f Formats, partitions: &[i32]) -> Result<Self> {
        let limit = kafka.properties.get("message.max.bytes");
        Ok(Self {
            formats,
            topic: kafka.input_topic.clone(),
            partitions: partitions.to_vec(),
            max_bytes: limit.and_then(|text| text.trim().parse().ok()).unwrap_or(MAX_BYTES),
            source: Reader::new(kafka)?,
        })
    }

    /// The records for a letter, or why it can't be put back.
    ///
    /// # Errors
    /// The outer error: `ErrorKind::Kafka` or `ErrorKind::Registry`.
    pub fn rebuild(
        &self,
        letter: &DeadLetter,
        position: SourcePosition,
    ) -> Result<Result<Rebuilt, Reason>> {
        let original = match letter.original_record() {
            Ok(Some(original)) => original,
            Ok(None) => match self.read_source(letter)? {
                Some(original) => original,
                None => return Ok(Err(Reason::Gone)),
            },
            Err(_) => return Ok(Err(Reason::Damaged)),
        };
        let exists = self.partitions.contains(&letter.source_partition);
        let partition = exists.then_some(letter.source_partition);
        let opened = self.formats.open_request(original.payload.as_deref().unwrap_or_default())?;
        let read = opened.map(Cow::into_owned);
        let markers = &self.formats.markers;
        let made = rebuild_records(letter, original, read, partition, position, markers);
        Ok(made.and_then(|rebuilt| {
            let fits = record_size(&rebuilt.reference).saturating_add(FRAME) <= self.max_bytes;
            if fits { Ok(rebuilt) } else { Err(Reason::TooLarge) }
        }))
    }

    /// The record at the letter's source, if the topic still has it.
    fn read_source(&self, letter: &DeadLetter) -> Result<Option<RawRecord>> {
        let (partition, offset) = (letter.source_partition, letter.source_offset);
        if !self.partitions.contains(&partition) {
            return Ok(None);
        }
        let kept = self.source.ranges(&self.topic, &[partition], End::Stable)?;
        if !kept.get(&partition).is_some_and(|range| range.contains(&offset)) {
            return Ok(None);
        }
        let mut found = None;
        let one = Ranges::from([(partition, offset..offset.saturating_add(1))]);
        self.source.read_records(&self.topic, &one, |record| {
            if record.offset() == offset {
                found = Some(RawRecord::detach(record));
            }
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(found)
    }
}

/// The records for one letter, given its original message and that message's JSON, if it has any.
/// Pure.
fn rebuild_records(
    letter: &DeadLetter,
    mut original: RawRecord,
    read: Option<Vec<u8>>,
    partition: Option<i32>,
    position: SourcePosition,
    markers: &Encoder,
) -> Result<Rebuilt, Reason> {
    let times = RawHeader::find(&original.headers, header::REDRIVEN_TIMES)
        .and_then(|value| std::str::from_utf8(value).ok()?.parse::<u32>().ok())
        .unwrap_or(0)
        .saturating_add(1);
    if let Some(image) = failed_image(letter, read.as_deref(), &original.headers)? {
        original.payload = Some(image.to_json());
        // The payload is a request now, not an event.
        original.headers.retain(|header| !header.name.starts_with(b"ce_"));
    }
    original.headers.retain(|header| !OWN_HEADERS.iter().any(|own| own.as_bytes() == header.name));
    original.headers.push(RawHeader::new(header::REDRIVEN_FROM, position.to_string()));
    original.headers.push(RawHeader::new(header::REDRIVEN_TIMES, times.to_string()));
    // A message that could not be read may have an id of its own, which counts once it can be read.
    if letter.uri.is_some() {
        original.headers.push(RawHeader::new(header::REDRIVEN_ID, letter.id.as_str()));
    }
    let marker = Marker::new(letter, &position, times);
    let marker = RawRecord {
        key: original.key.clone(),
        payload: Some(markers.encode(&marker).map_err(|_| Reason::Damaged)?),
        headers: vec![
            RawHeader::new(header::REDRIVEN, position.to_string()),
            RawHeader::new(header::ERROR_CODE, letter.code.as_str()),
        ],
    };
    let code = letter.code.clone();
    Ok(Rebuilt { code, partition, reference: original, position, marker })
}

/// The image that failed; None where the message has only one.
fn failed_image(
    letter: &DeadLetter,
    read: Option<&[u8]>,
    headers: &[RawHeader],
) -> Result<Option<ImageRequest>, Reason> {
    let source = letter.source_position();
    let parsed = read.and_then(|payload| message::parse(payload, headers, &source).ok());
    let Some(mut requests) = parsed else {
        return Ok(None);
    };
    let index = usize::try_from(letter.source_index).map_err(|_| Reason::Damaged)?;
    if requests.images.len() < 2 {
        return Ok(None);
    }
    if index >= requests.images.len() {
        return Err(Reason::Damaged);
    }
    let image = requests.images.swap_remove(index);
    // The worker must read the same object from the request.
    let again = message::parse(&image.to_json(), &[], &source).map_err(|_| Reason::Damaged)?;
    if again.images.as_slice() != [image.clone()] {
        return Err(Reason::Damaged);
    }
    Ok(Some(image))
}

fn record_size(record: &RawRecord) -> usize {
    let length = |bytes: &Option<Vec<u8>>| bytes.as_ref().map_or(0, Vec::len);
    let headers =
        record.headers.iter().map(|header| header.name.len() + length(&header.value) + 10);
    length(&record.key) + length(&record.payload) + headers.sum::<usize>()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{Error, ErrorKind};
    use crate::message::{FailedStage, parse};

    fn source() -> SourcePosition {
        SourcePosition { topic: "images.in".into(), partition: 1, offset: 5 }
    }

    fn position(offset: i64) -> SourcePosition {
        SourcePosition { topic: "images.dlq".into(), partition: 0, offset }
    }

    fn letter(original: &RawRecord, index: usize) -> DeadLetter {
        let error = Error::new(ErrorKind::ObjectNotFound, "no such key");
        let payload = original.payload.as_deref().unwrap_or_default();
        let requests = parse(payload, &original.headers, &source());
        let request = requests.as_ref().ok().and_then(|requests| requests.images.get(index));
        DeadLetter::new(&source(), index, request, &error, (FailedStage::Fetch, 1), original)
    }

    fn put_back(original: &RawRecord, index: usize, offset: i64) -> Rebuilt {
        let (record, read) = (original.clone(), original.payload.clone());
        rebuild_records(
            &letter(original, index),
            record,
            read,
            Some(1),
            position(offset),
            &Encoder::Json,
        )
        .unwrap()
    }

    fn raw_record(payload: &str, headers: Vec<RawHeader>) -> RawRecord {
        RawRecord { key: Some(b"k".to_vec()), payload: Some(payload.into()), headers }
    }

    #[test]
    fn the_original_comes_back_with_three_headers_more() {
        let null = RawHeader { name: b"\xff".to_vec(), value: None };
        let first = raw_record(r#"{"uri": "s3://photos/a.png"}"#, vec![null.clone(), null]);
        let once = put_back(&first, 0, 17);
        assert_eq!((&once.reference.key, &once.reference.payload), (&first.key, &first.payload));
        assert_eq!(once.reference.headers[..2], first.headers[..]);
        let added = |rebuilt: &Rebuilt, name| {
            let value = RawHeader::find(&rebuilt.reference.headers, name).unwrap();
            String::from_utf8(value.to_vec()).unwrap()
        };
        assert_eq!(added(&once, header::REDRIVEN_FROM), "images.dlq/0/17");
        assert_eq!(added(&once, header::REDRIVEN_TIMES), "1");
        assert_eq!(added(&once, header::REDRIVEN_ID), source().id(0));
        assert_eq!(Marker::marked_letter(&once.marker.headers), Some(position(17)));

        // Failed again, and redriven again: the headers are replaced, the id stays.
        let twice = put_back(&once.reference, 0, 30);
        assert_eq!(twice.reference.headers.len(), 5);
        assert_eq!(added(&twice, header::REDRIVEN_FROM), "images.dlq/0/30");
        assert_eq!(added(&twice, header::REDRIVEN_TIMES), "2");
        assert_eq!(added(&twice, header::REDRIVEN_ID), source().id(0));
    }

    #[test]
    fn a_message_that_was_not_understood_comes_back_as_it_is() {
        for original in
            [RawRecord::default(), raw_record("", vec![]), raw_record("no JSON", vec![])]
        {
            let back = put_back(&original, 0, 1).reference;
            assert_eq!((&back.key, &back.payload), (&original.key, &original.payload));
            assert_eq!(back.headers.len(), 2, "no id to keep");
        }
    }

    #[test]
    fn one_image_of_several_comes_back_alone() {
        let record = |key: &str| {
            format!(
                r#"{{"eventName": "ObjectCreated:Put", "s3": {{"bucket": {{"name": "photos"}},
                "object": {{"key": "{key}", "eTag": "e-{key}", "versionId": "v"}}}}}}"#
            )
        };
        let payload = format!(r#"{{"Records": [{}, {}]}}"#, record("a+b.png"), record("c.png"));
        let kept = RawHeader::new("traceparent", "t");
        let event = RawHeader::new("ce_specversion", "1.0");
        let original = raw_record(&payload, vec![event, kept.clone()]);
        let images = parse(payload.as_bytes(), &[], &source()).unwrap().images;
        for (index, image) in images.iter().enumerate() {
            let back = put_back(&original, index, 3).reference;
            let elsewhere = SourcePosition { offset: 99, ..source() };
            let read = parse(back.payload.as_deref().unwrap(), &back.headers, &elsewhere).unwrap();
            assert_eq!(&read.images, std::slice::from_ref(image));
            assert_eq!((back.key.as_deref(), &back.headers[0]), (Some(&b"k"[..]), &kept));
        }
        let beyond = letter(&original, 2);
        let read = original.payload.clone();
        let refused = rebuild_records(&beyond, original, read, None, position(3), &Encoder::Json)
            .unwrap_err();
        assert_eq!(refused, Reason::Damaged);
    }
}
