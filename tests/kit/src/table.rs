//! The table in which every benchmark shows its ratios: `name  ratio  goal  ok|short`.

/// Prints the head of a table, after an empty line.
pub fn head(title: &str) {
    println!("\n{title:<58} {:>7} {:>6}", "ratio", "goal");
}

/// Prints one row. Without a goal there is no verdict.
pub fn row(name: &str, ratio: f64, goal: Option<f64>) {
    match goal {
        Some(goal) => {
            let verdict = if ratio >= goal { "ok" } else { "short" };
            println!("  {name:<56} {ratio:>7.2} {goal:>6.2}  {verdict}");
        }
        None => println!("  {name:<56} {ratio:>7.2}"),
    }
}
