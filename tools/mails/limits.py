"""What is asked of every mail: the thresholds of L1 to L11 and their meaning, in one place."""

HTML_BYTES = 12_000
STYLE_BYTES = 4_000

UNSUPPORTED = 8
UNSUPPORTED_CORE = 5
UNSUPPORTED_APPLE = 0
# These two lack nearly everything, so that beside them the others would not be seen.
WEAK_CLIENTS = frozenset({"gmail.mobile-webmail", "outlook.windows-mail"})

CONTRAST = 4.5  # WCAG 2.2, 1.4.3
CONTRAST_LARGE = 3.0
PICTURE_AREA = 48 * 48  # px²; a larger picture without alternative text says something that is lost without it
DRAWN = 4  # px; a letter of this size has a pixel in its own colour when it is drawn

BUTTON_HEIGHT = 44  # px; WCAG 2.2, 2.5.5
# Kinds without an action: their bodies are the sender's own.
WITHOUT_BUTTON = frozenset({"custom"})

TEXT_WORDS = 0.9  # of the words of the HTML that the text part must hold
SPAM_SCORE = 0.0

PREHEADER = 40  # characters
BODY_SIZE = 16  # px
SMALLEST_SIZE = 13

MEANING = {
    "L1": f"size: at most {HTML_BYTES / 1000:g} kB of HTML, at most {STYLE_BYTES / 1000:g} kB of them in `<style>`",
    "L2": "features that some mail program lacks (Gmail, Outlook, Apple Mail and Yahoo, says caniemail): at most "
    f"{UNSUPPORTED} in all; at most {UNSUPPORTED_CORE} leaving out Gmail's mobile web page and Windows Mail, which "
    f"lack nearly everything; {UNSUPPORTED_APPLE} in Apple Mail",
    "L3": "errors of the markup (html-validate, recommended and accessibility rules): 0",
    "L4": "accessibility violations of any impact (axe), in light and dark, 375 and 1280 px wide: 0; dark colours of "
    "its own",
    "L5": "pixels that do not fit, 375 px wide, 320 px wide, and 375 px wide with every `<style>` stripped: 0",
    "L6": f"pieces of text with a contrast under {CONTRAST:g}:1 (large text {CONTRAST_LARGE:g}:1), in the mail's own "
    "dark colours, with light backgrounds and dark text inverted, and in the dark that Chromium forces on a page: 0",
    "L7": "share of the text that can be read with pictures and CSS background pictures off: 100 %",
    "L8": f"the one button: at least {BUTTON_HEIGHT} px high; contrast of its label at least {CONTRAST:g}:1 in "
    "light, in dark and without CSS backgrounds; shape kept in Outlook",
    "L9": "the raw link under the button, as text; a text part with every link of the HTML, without tags, and with "
    f"at least {100 * TEXT_WORDS:.0f} % of its words",
    "L10": f"SpamAssassin's score of the complete mail, local rules: at most {SPAM_SCORE:.1f}",
    "L11": f"a preview text of at least {PREHEADER} characters that does not repeat the subject; `lang`, `dir`, "
    '`title` = subject, `role="presentation"` on layout tables, `alt` on pictures, one `h1`; body text of '
    f"{BODY_SIZE} px, nothing under {SMALLEST_SIZE} px",
}
