//! Shared parts of the HTML pages: style, escaped text, embedded photos.
//!
//! A page is one self-contained file: it loads nothing and runs no script.

use std::fmt::{self, Display, Write};
use std::fs;
use std::io::Cursor;
use std::path::Path;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use image::codecs::jpeg::JpegEncoder;
use image::{DynamicImage, ImageDecoder, ImageReader, ImageResult, Limits};

const STYLE: &str = include_str!("page.css");
/// Longest edge of a photo on a page, in pixels.
const EDGE: u32 = 640;
const QUALITY: u8 = 80;

/// The beginning of a page, up to `<body>`.
pub fn head(title: &str) -> String {
    let mut html = String::from("<!doctype html>\n<html lang=\"en\">\n<head>\n");
    html.push_str("<meta charset=\"utf-8\">\n");
    html.push_str("<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n");
    push(&mut html, format_args!("<title>{}</title>\n", Escaped(title)));
    push(&mut html, format_args!("<style>\n{STYLE}</style>\n</head>\n<body>\n"));
    html
}

/// The photo at `path`, reduced to `EDGE`, as the data URL of an `img`; None if it can't be decoded.
pub fn photo(path: &Path) -> Option<String> {
    let jpeg = shrink(&fs::read(path).ok()?).ok()?;
    Some(format!("data:image/jpeg;base64,{}", BASE64_STANDARD.encode(jpeg)))
}

/// Appends `text` to `html`.
pub fn push(html: &mut String, text: fmt::Arguments<'_>) {
    // Writing to a `String` can't fail.
    let _ = html.write_fmt(text);
}

/// Text that is escaped for HTML text and quoted attribute values.
pub struct Escaped<'a>(pub &'a str);

impl Display for Escaped<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for letter in self.0.chars() {
            match letter {
                '&' => formatter.write_str("&amp;")?,
                '<' => formatter.write_str("&lt;")?,
                '>' => formatter.write_str("&gt;")?,
                '"' => formatter.write_str("&quot;")?,
                '\'' => formatter.write_str("&#39;")?,
                plain => formatter.write_char(plain)?,
            }
        }
        Ok(())
    }
}

fn shrink(bytes: &[u8]) -> ImageResult<Vec<u8>> {
    let mut reader = ImageReader::new(Cursor::new(bytes)).with_guessed_format()?;
    reader.limits(Limits::default());
    let mut decoder = reader.into_decoder()?;
    let orientation = decoder.orientation()?;
    let mut photo = DynamicImage::from_decoder(decoder)?;
    photo.apply_orientation(orientation);
    let small =
        if photo.width().max(photo.height()) > EDGE { photo.thumbnail(EDGE, EDGE) } else { photo };
    let mut jpeg = Vec::new();
    small.to_rgb8().write_with_encoder(JpegEncoder::new_with_quality(&mut jpeg, QUALITY))?;
    Ok(jpeg)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_photo_is_shrunk_to_the_page() {
        let jpeg = shrink(&fs::read("samples/cat.jpg").unwrap()).unwrap();
        let small = image::load_from_memory(&jpeg).unwrap();
        assert!(small.width().max(small.height()) <= EDGE);
        assert!(photo(Path::new("samples/cat.jpg")).unwrap().starts_with("data:image/jpeg"));
        assert_eq!(photo(Path::new("Cargo.toml")), None);
    }
}
