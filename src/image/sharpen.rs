//! Restores some of the detail that a scaled JPEG decode loses.
//!
//! Each pixel of a scaled JPEG is the mean of 2 x 2, 4 x 4 or 8 x 8 pixels of the whole image, so
//! an image resized from it is slightly softer than one resized from the whole image. The mean
//! over the width of one pixel attenuates a frequency f (in cycles per pixel) by about
//! (pi f)^2 / 6. Adding 1/24 of the difference to the two neighbours compensates this along one
//! axis.

use image::RgbImage;

/// About 1/24, in units of 1/64: the sums fit into 16 bits.
const SHARE: i16 = 3;
const WHOLE: i16 = 64;

/// Sharpens `image` in place.
pub fn sharpen(image: &mut RgbImage) {
    let length = 3 * image.width() as usize;
    if length == 0 {
        return;
    }
    let (mut above, mut row) = (vec![0; length], vec![0; length + 6]);
    above.copy_from_slice(&image.as_raw()[..length]);
    let mut rest = image.as_flat_samples_mut().samples;
    while let Some((current, below)) = rest.split_at_mut_checked(length) {
        // At the edge of the image a pixel is its own neighbour.
        row[..3].copy_from_slice(&current[..3]);
        row[3..length + 3].copy_from_slice(current);
        row[length + 3..].copy_from_slice(&current[length - 3..]);
        let next = below.get(..length).unwrap_or(&row[3..length + 3]);
        let beside = row[..length].iter().zip(&row[6..]);
        let beyond = above.iter().zip(next);
        for ((pixel, (left, right)), (up, down)) in current.iter_mut().zip(beside).zip(beyond) {
            let around = i16::from(*left) + i16::from(*right) + i16::from(*up) + i16::from(*down);
            let sum = i16::from(*pixel) * (WHOLE + 4 * SHARE) - around * SHARE;
            *pixel = ((sum + WHOLE / 2) / WHOLE).clamp(0, 255) as u8;
        }
        above.copy_from_slice(&row[3..length + 3]);
        rest = below;
    }
}

#[cfg(test)]
mod tests {
    use image::Rgb;

    use super::*;

    #[test]
    fn an_edge_grows_steeper_and_a_plane_stays() {
        let mut step = RgbImage::from_fn(6, 3, |x, _| Rgb([if x < 3 { 64 } else { 128 }; 3]));
        sharpen(&mut step);
        for row in step.rows() {
            let values: Vec<u8> = row.map(|pixel| pixel.0[1]).collect();
            assert_eq!(values, [64, 64, 61, 131, 128, 128]);
        }
        let mut step = RgbImage::from_fn(1, 4, |_, y| Rgb([if y < 2 { 0 } else { 255 }; 3]));
        sharpen(&mut step);
        let values: Vec<u8> = step.pixels().map(|pixel| pixel.0[0]).collect();
        assert_eq!(values, [0, 0, 255, 255]);
    }

    #[test]
    fn channels_do_not_mix() {
        let mut image =
            RgbImage::from_fn(5, 5, |x, y| Rgb([200, 7, if (x + y) % 2 == 0 { 90 } else { 110 }]));
        sharpen(&mut image);
        assert!(image.pixels().all(|pixel| pixel.0[0] == 200 && pixel.0[1] == 7));
        assert_eq!(image.get_pixel(2, 2).0[2], 86);
    }
}
