//! An HTML page of photos with their captions, references and attention maps.

use std::path::PathBuf;

use crate::engine::Caption;
use crate::error::{Error, ErrorKind, Result};
use crate::html::{self, Escaped, push};

/// Most photos on a page: more make browsers slow.
const MAX_PHOTOS: usize = 500;

/// The content of the page.
pub struct Page<'a> {
    /// One line per metric.
    pub figures: Vec<String>,
    pub photos: Vec<Photo<'a>>,
}

/// A photo with the model's caption and the human references.
pub struct Photo<'a> {
    pub path: PathBuf,
    pub caption: &'a Caption,
    pub references: &'a [String],
    pub cider_d: f64,
}

/// Renders the page as one HTML file.
///
/// # Errors
/// `ErrorKind::Bundle` if the bundle's patches are not a square grid.
pub fn render(page: &Page<'_>) -> Result<String> {
    let mut html = html::head("FusionCap: evaluation");
    html.push_str("<div class=\"top\"><header>\n<h1>FusionCap</h1>\n");
    push(
        &mut html,
        format_args!("<p>{} photos, the worst caption first</p></header>\n", page.photos.len()),
    );
    html.push_str("<ul class=\"figures\">\n");
    for figure in &page.figures {
        push(&mut html, format_args!("<li>{}</li>\n", Escaped(figure)));
    }
    html.push_str("</ul>\n</div>\n<main>\n");
    for photo in page.photos.iter().take(MAX_PHOTOS) {
        push_figure(&mut html, photo)?;
    }
    html.push_str("</main>\n");
    let left_out = page.photos.len().saturating_sub(MAX_PHOTOS);
    if left_out > 0 {
        push(&mut html, format_args!("<footer><p>{left_out} more are not shown.</p></footer>\n"));
    }
    html.push_str("</body>\n</html>\n");
    Ok(html)
}

fn push_figure(html: &mut String, photo: &Photo<'_>) -> Result<()> {
    html.push_str("<figure>");
    let address = html::photo(&photo.path);
    match &address {
        Some(address) => push(
            html,
            format_args!("<img alt=\"{}\" src=\"{address}\">", Escaped(&photo.caption.text)),
        ),
        None => html.push_str("<div class=\"none\">no picture</div>"),
    }
    push(html, format_args!("<figcaption><p>{}</p><ul>", Escaped(&photo.caption.text)));
    for reference in photo.references {
        push(html, format_args!("<li>{}</li>", Escaped(reference)));
    }
    html.push_str("</ul>");
    if !photo.caption.attention.is_empty() {
        push_attention(html, &photo.caption.attention)?;
    }
    let name = photo.path.file_name().unwrap_or_default().to_string_lossy();
    push(
        html,
        format_args!(
            "<small><span>{}</span><span title=\"CIDEr-D of this photo\">{:.1}</span></small>\
             </figcaption></figure>\n",
            Escaped(&name),
            100.0 * photo.cider_d
        ),
    );
    Ok(())
}

/// Appends the attention map of each local query.
fn push_attention(html: &mut String, attention: &[Vec<f32>]) -> Result<()> {
    let patches = attention.first().map_or(0, Vec::len);
    let grid = patches.isqrt();
    if grid * grid != patches {
        return Err(Error::new(ErrorKind::Bundle, "the patches are not a square grid")
            .with_context("patches", patches));
    }
    html.push_str("<div class=\"looks\" title=\"attention of each local query\">");
    for query in attention {
        let most = query.iter().copied().fold(f32::MIN_POSITIVE, f32::max);
        push(html, format_args!("<svg viewBox=\"0 0 {grid} {grid}\">"));
        for (patch, share) in query.iter().enumerate() {
            let (x, y, heat) = (patch % grid, patch / grid, share / most);
            push(
                html,
                format_args!(
                    "<rect x=\"{x}\" y=\"{y}\" width=\"1\" height=\"1\" opacity=\"{heat:.2}\"/>"
                ),
            );
        }
        html.push_str("</svg>");
    }
    html.push_str("</div>");
    Ok(())
}
