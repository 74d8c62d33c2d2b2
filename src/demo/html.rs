//! The page of a demonstration: one HTML file that contains the photos and their captions.
//!
//! All text from outside (file names, captions, reasons) is escaped. The page loads nothing and
//! has no script.

use std::fs;
use std::path::Path;

use crate::demo::kafka::Outcome;
use crate::demo::report::{Answered, DemoReport};
use crate::error::{Error, ErrorKind, Result};
use crate::html::{self, Escaped, push};

/// Most photos on the page; browsers become slow with more.
const MAX_PHOTOS: usize = 500;

/// Writes the page of `report` to `path`.
///
/// # Errors
/// `ErrorKind::Io`, naming the file.
pub fn write(report: &DemoReport, path: &Path) -> Result<()> {
    fs::write(path, page(report)).map_err(|error| {
        Error::new(ErrorKind::Io, "can't write the page")
            .with_context("path", path.display())
            .with_source(error)
    })
}

fn page(report: &DemoReport) -> String {
    let mut html = html::head(&format!("FusionCap: {}", report.headline()));
    html.push_str("<div class=\"top\">\n");
    header(&mut html, report);
    stages(&mut html, report);
    html.push_str("</div>\n");
    html.push_str("<main>\n");
    for answered in report.photos.iter().take(MAX_PHOTOS) {
        figure(&mut html, answered);
    }
    html.push_str("</main>\n");
    footer(&mut html, report);
    html.push_str("</body>\n</html>\n");
    html
}

fn header(html: &mut String, report: &DemoReport) {
    push(
        html,
        format_args!(
            "<header>\n<h1>FusionCap</h1>\n<p class=\"headline\">{}, {:.1} images/s</p>\n\
             <p>{}</p>\n</header>\n",
            Escaped(&report.headline()),
            report.images_per_second(),
            Escaped(&report.verdict()),
        ),
    );
}

fn stages(html: &mut String, report: &DemoReport) {
    let longest = report.longest_stage();
    html.push_str("<section class=\"stages\">\n<h2>Where the time went <small>(busy time, all threads)</small></h2>\n<dl>\n");
    for (stage, busy) in &report.stages {
        let percent = busy.as_secs_f64() / longest.as_secs_f64().max(f64::EPSILON) * 100.0;
        push(
            html,
            format_args!(
                "<dt>{}</dt><dd>{:.2} s</dd><dd><i style=\"width:{percent:.1}%\"></i></dd>\n",
                Escaped(stage),
                busy.as_secs_f64(),
            ),
        );
    }
    html.push_str("</dl>\n</section>\n");
}

fn figure(html: &mut String, answered: &Answered) {
    let name = &answered.photo.name;
    let (text, class, score) = match answered.outcomes.as_slice() {
        [Outcome::Caption { caption, score }] => (caption.clone(), "", format!("{score:.3}")),
        [Outcome::DeadLetter { code, reason }] => {
            (format!("{code}: {reason}"), "failed", String::new())
        }
        [] => ("nothing came back".into(), "failed", String::new()),
        several => (format!("came back {} times", several.len()), "failed", String::new()),
    };
    html.push_str("<figure>");
    match html::photo(&answered.photo.path) {
        Some(address) => {
            let alt =
                if class.is_empty() { text.clone() } else { format!("{name}, not captioned") };
            push(html, format_args!("<img alt=\"{}\" src=\"{address}\">", Escaped(&alt)));
        }
        None => html.push_str("<div class=\"none\">no picture</div>"),
    }
    push(
        html,
        format_args!(
            "<figcaption><p class=\"{class}\">{}</p><small><span>{}</span>\
             <span title=\"mean log-probability of a token\">{score}</span></small></figcaption>\
             </figure>\n",
            Escaped(&text),
            Escaped(name),
        ),
    );
}

fn footer(html: &mut String, report: &DemoReport) {
    let left_out = report.photos.len().saturating_sub(MAX_PHOTOS);
    html.push_str("<footer>\n");
    if left_out > 0 {
        push(html, format_args!("<p>{left_out} more photos are not on this page.</p>\n"));
    }
    push(
        html,
        format_args!(
            "<p>Captions and scores (mean log-probability of a token) by {}, {}.</p>\n</footer>\n",
            Escaped(&report.model),
            Escaped(&report.digest),
        ),
    );
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::demo::photos::Photo;

    fn answered(name: &str, outcomes: Vec<Outcome>) -> Answered {
        let path = Path::new("samples").join(name);
        Answered { photo: Photo { path, name: name.into(), id: name.into() }, outcomes }
    }

    #[test]
    fn the_page_contains_photos_and_escapes_text() {
        let caption = Outcome::Caption { caption: "a \"cat\" <b>&".into(), score: -1.0 };
        let dead = Outcome::DeadLetter { code: "not_an_image".into(), reason: "it's text".into() };
        let report = DemoReport {
            model: "tiny 1".into(),
            digest: "sha256:00".into(),
            photos: vec![answered("cat.jpg", vec![caption]), answered("<x>.txt", vec![dead])],
            unexpected: 0,
            elapsed: Duration::from_secs(1),
            stages: vec![("fetch", Duration::from_millis(250))],
        };
        let html = page(&report);
        assert_eq!(html.matches("data:image/jpeg;base64,").count(), 1);
        assert!(html.contains("alt=\"a &quot;cat&quot; &lt;b&gt;&amp;\""));
        assert!(html.contains("not_an_image: it&#39;s text"));
        assert!(html.contains("&lt;x&gt;.txt") && !html.contains("<x>"));
        assert!(html.contains("captioned 1 of 2 images in 1.0 s"));
        assert!(!html.contains("http"), "the page loads nothing");
    }
}
