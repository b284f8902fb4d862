//! Whole numbers as people read them.

use std::fmt::{self, Display, Formatter, Write};

/// With a comma between thousands.
pub struct Number(pub u64);

impl Display for Number {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let digits = self.0.to_string();
        for (index, digit) in digits.chars().enumerate() {
            if index > 0 && (digits.len() - index).is_multiple_of(3) {
                f.write_char(',')?;
            }
            f.write_char(digit)?;
        }
        Ok(())
    }
}

/// A number and what is counted, such as `1,204 people`.
pub fn counted(count: u64, one: &str, several: &str) -> String {
    format!(
        "{} {}",
        Number(count),
        if count == 1 { one } else { several }
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_well() {
        for (number, text) in [
            (0, "0"),
            (999, "999"),
            (1_000, "1,000"),
            (1_234_567, "1,234,567"),
        ] {
            assert_eq!(Number(number).to_string(), text);
        }
        assert_eq!(counted(1, "page", "pages"), "1 page");
        assert_eq!(counted(2_000, "page", "pages"), "2,000 pages");
    }
}
