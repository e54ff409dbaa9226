"""Pages of HTML that load nothing from elsewhere, made from templates."""
