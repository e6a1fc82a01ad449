"""What all HTML pages share: one base with the style sheet, figures as inline SVG, images as data URIs."""
