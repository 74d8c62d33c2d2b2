//! The learning curves, and their plot for the model card.

use plotters::prelude::*;
use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind, Result};

/// In pixels.
const SIZE: (u32, u32) = (640, 360);
const TRAINING: RGBColor = RGBColor(160, 166, 170);
const HELD_OUT: RGBColor = RGBColor(11, 110, 95);

/// The loss after one pass over the corpus.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, PartialEq)]
pub struct Epoch {
    pub epoch: usize,
    /// Mean over the epoch, with label smoothing, in nats per token.
    pub training_loss: f64,
    /// Without label smoothing, in nats per token.
    pub held_out_loss: f64,
}

/// The index in `curve` of the lowest held-out loss.
pub fn best_epoch(curve: &[Epoch]) -> Option<usize> {
    let losses = curve.iter().map(|epoch| epoch.held_out_loss).enumerate();
    losses.min_by(|left, right| left.1.total_cmp(&right.1)).map(|(place, _)| place)
}

type Loss = fn(&Epoch) -> f64;

/// Plots the losses by epoch as SVG.
///
/// # Errors
/// `ErrorKind::Internal` if it can't be drawn.
pub fn render_svg(curve: &[Epoch]) -> Result<String> {
    let mut svg = String::new();
    plot(curve, &mut svg).map_err(|error| {
        Error::new(ErrorKind::Internal, "can't draw the learning curves")
            .with_source(error.to_string())
    })?;
    Ok(svg)
}

fn plot(curve: &[Epoch], svg: &mut String) -> std::result::Result<(), Box<dyn std::error::Error>> {
    let losses = || curve.iter().flat_map(|epoch| [epoch.training_loss, epoch.held_out_loss]);
    let highest = losses().fold(f64::NEG_INFINITY, f64::max).max(0.1);
    let lowest = losses().fold(f64::INFINITY, f64::min).min(highest);
    let margin = 0.05 * (highest - lowest).max(0.1);
    let last = curve.iter().map(|epoch| epoch.epoch).max().unwrap_or(1).max(2) as f64;
    let canvas = SVGBackend::with_string(svg, SIZE).into_drawing_area();
    canvas.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&canvas)
        .margin(12)
        .x_label_area_size(36)
        .y_label_area_size(48)
        .build_cartesian_2d(1.0..last, (lowest - margin)..(highest + margin))?;
    chart
        .configure_mesh()
        .x_desc("epoch")
        .y_desc("loss, nats per token")
        .x_labels(curve.len().clamp(2, 10))
        .x_label_formatter(&|epoch| format!("{epoch:.0}"))
        .light_line_style(TRANSPARENT)
        .draw()?;
    let lines: [(_, _, Loss); 2] = [
        ("training", TRAINING, |epoch| epoch.training_loss),
        ("held out", HELD_OUT, |epoch| epoch.held_out_loss),
    ];
    for (name, colour, loss) in lines {
        let points = || curve.iter().map(|epoch| (epoch.epoch as f64, loss(epoch)));
        chart
            .draw_series(LineSeries::new(points(), colour.stroke_width(2)))?
            .label(name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(2)));
        chart.draw_series(PointSeries::of_element(
            points(),
            3,
            &colour,
            &|place, size, style| Circle::new(place, size, style.filled()),
        ))?;
    }
    chart.configure_series_labels().border_style(TRANSPARENT).draw()?;
    canvas.present()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_losses_are_drawn() {
        let epoch =
            |epoch, training_loss, held_out_loss| Epoch { epoch, training_loss, held_out_loss };
        let svg = render_svg(&[epoch(1, 4.0, 3.5), epoch(2, 3.0, 2.9)]).unwrap();
        assert!(svg.starts_with("<svg"), "{svg}");
        for word in ["training", "held out", "nats per token", "#A0A6AA", "#0B6E5F"] {
            assert!(svg.contains(word), "{word}");
        }
        // A single epoch is a point, not an error.
        assert!(render_svg(&[epoch(1, 4.0, 3.5)]).unwrap().contains("<circle"));
    }
}
