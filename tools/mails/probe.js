// What a reader would see of the mail in this document. Evaluated in the page; everything hangs on `window.probe`.
window.probe = (() => {
    const colour = (css) => {
        const [r, g, b, a = 1] = css.match(/[\d.]+/g).map(Number);
        return { r, g, b, a };
    };
    const css = ({ r, g, b }) => "#" + [r, g, b].map((c) => Math.round(c).toString(16).padStart(2, "0")).join("");
    const over = (top, below) => ({
        r: top.r * top.a + below.r * (1 - top.a),
        g: top.g * top.a + below.g * (1 - top.a),
        b: top.b * top.a + below.b * (1 - top.a),
        a: 1,
    });
    // WCAG 2.2, "relative luminance" and "contrast ratio".
    const luminance = ({ r, g, b }) => {
        const [x, y, z] = [r, g, b].map((c) => {
            const share = c / 255;
            return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
        });
        return 0.2126 * x + 0.7152 * y + 0.0722 * z;
    };
    const contrast = (one, other) => {
        const [low, high] = [luminance(one), luminance(other)].sort((a, b) => a - b);
        return (high + 0.05) / (low + 0.05);
    };

    // The colour of the empty page: white, or Chromium's own dark when the document allows it.
    const canvas = () => {
        const sheet = document.createElement("div");
        sheet.style.backgroundColor = "Canvas";
        document.documentElement.append(sheet);
        const found = colour(getComputedStyle(sheet).backgroundColor);
        sheet.remove();
        return found;
    };

    // CSS background images count as absent: many mail programs do not load them.
    const background = (element) => {
        const layers = [];
        for (let at = element; at; at = at.parentElement) {
            const layer = colour(getComputedStyle(at).backgroundColor);
            layers.push(layer);
            if (layer.a === 1) break;
        }
        return layers.reduceRight((below, layer) => over(layer, below), canvas());
    };

    const foreground = (element, behind) => {
        const ink = colour(getComputedStyle(element).color);
        for (let at = element; at; at = at.parentElement) ink.a *= Number(getComputedStyle(at).opacity);
        return over(ink, behind);
    };

    const name = (element) => {
        const classes = [...element.classList].map((one) => `.${one}`).join("");
        const parent = element.parentElement;
        const own = element.localName + (element.id ? `#${element.id}` : "") + classes;
        return parent && parent !== document.documentElement && !classes && !element.id
            ? `${parent.localName}${[...parent.classList].map((one) => `.${one}`).join("")} > ${own}`
            : own;
    };

    // Spaces and characters without a width: what pads a preheader.
    const words = (text) => text.replace(/[\s\u00ad\u034f\u200b-\u200f\u2007\u2060\ufeff]+/g, " ").trim();

    const shown = (element) =>
        element.checkVisibility({ opacityProperty: true, visibilityProperty: true, contentVisibilityAuto: true });

    function* textNodes() {
        const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
        for (let node = walker.nextNode(); node; node = walker.nextNode()) {
            if (!["style", "script", "title"].includes(node.parentElement.localName) && words(node.data)) yield node;
        }
    }

    const boxes = (node) => {
        const range = document.createRange();
        range.selectNodeContents(node);
        return [...range.getClientRects()].filter(({ width, height }) => width && height);
    };

    const visible = (node) => shown(node.parentElement) && boxes(node).length > 0;

    const reading = (element, text) => {
        const style = getComputedStyle(element);
        const behind = background(element);
        const ink = foreground(element, behind);
        const size = parseFloat(style.fontSize);
        const large = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700);
        return {
            text: words(text),
            at: name(element),
            ink: css(ink),
            behind: css(behind),
            contrast: contrast(ink, behind),
            large,
            size,
        };
    };

    // Every piece of visible text with its colours; the alternative text of a picture is read in its place.
    const texts = () => {
        const pieces = [...textNodes()].filter(visible).map((node) => reading(node.parentElement, node.data));
        const pictures = [...document.images].filter((image) => shown(image) && words(image.alt));
        return [...pieces, ...pictures.map((image) => reading(image, image.alt))];
    };

    // Where the text of `texts` stands, line by line, for those who look at the picture itself.
    const places = () =>
        [...textNodes()].filter(visible).map((node) => ({
            ...reading(node.parentElement, node.data),
            lines: boxes(node).map(({ x, y, width, height }) => ({ x, y: y + scrollY, width, height })),
        }));

    // The same texts with the colours of a screenshot in place of the computed ones, which do not change when the
    // browser itself makes a page dark: most pixels of a line are background, and the ink is furthest from it.
    const coloursIn = async (png, pieces, scale) => {
        const bitmap = await createImageBitmap(await (await fetch(`data:image/png;base64,${png}`)).blob());
        const picture = new OffscreenCanvas(bitmap.width, bitmap.height).getContext("2d");
        picture.drawImage(bitmap, 0, 0);
        return pieces.map(({ lines, ...piece }) => {
            const counts = new Map();
            for (const { x, y, width, height } of lines) {
                const box = [x, y, width, height].map((length) => Math.max(1, Math.round(length * scale)));
                const { data } = picture.getImageData(...box);
                for (let at = 0; at < data.length; at += 4) {
                    const key = (data[at] << 16) | (data[at + 1] << 8) | data[at + 2];
                    counts.set(key, (counts.get(key) ?? 0) + 1);
                }
            }
            const rgb = (key) => ({ r: key >> 16, g: (key >> 8) & 255, b: key & 255 });
            const behind = rgb([...counts].reduce((most, one) => (one[1] > most[1] ? one : most))[0]);
            const ink = [...counts.keys()].map(rgb).reduce((far, one) => (contrast(one, behind) > contrast(far, behind) ? one : far));
            return { ...piece, ink: css(ink), behind: css(behind), contrast: contrast(ink, behind) };
        });
    };

    // A screenshot as a palette of at most 256 colours and an index for each pixel, in base64. Rare colours, which are
    // edges of letters, become the nearest of the frequent ones.
    const indexed = async (png) => {
        const bitmap = await createImageBitmap(await (await fetch(`data:image/png;base64,${png}`)).blob());
        const { width, height } = bitmap;
        const picture = new OffscreenCanvas(width, height).getContext("2d");
        picture.drawImage(bitmap, 0, 0);
        const { data } = picture.getImageData(0, 0, width, height);
        const key = (at) => (data[at] << 16) | (data[at + 1] << 8) | data[at + 2];
        const counts = new Map();
        for (let at = 0; at < data.length; at += 4) counts.set(key(at), (counts.get(key(at)) ?? 0) + 1);
        const colours = [...counts].sort((one, other) => other[1] - one[1] || one[0] - other[0]).map(([rgb]) => rgb);
        const palette = colours.slice(0, 256);
        const distance = (one, other) =>
            [16, 8, 0].reduce((sum, shift) => sum + (((one >> shift) & 255) - ((other >> shift) & 255)) ** 2, 0);
        const nearest = (rgb) =>
            palette.reduce((best, one, at) => (distance(one, rgb) < distance(palette[best], rgb) ? at : best), 0);
        const places = new Map(colours.map((rgb, at) => [rgb, at < 256 ? at : nearest(rgb)]));
        let pixels = "";
        for (let at = 0; at < data.length; at += 4) pixels += String.fromCharCode(places.get(key(at)));
        return { width, height, palette, pixels: btoa(pixels) };
    };

    // Pixels that lie outside the window, and whose they are.
    const overflow = () => {
        const width = document.documentElement.clientWidth;
        let most = Math.max(0, document.documentElement.scrollWidth - width);
        let at = most ? "the page" : "";
        const look = (element, { left, right, width: wide }) => {
            const beyond = wide ? Math.ceil(Math.max(right - width, -left) - 0.5) : 0;
            if (beyond > 0 && beyond >= most) [most, at] = [beyond, name(element)];
        };
        for (const element of document.body.querySelectorAll("*")) {
            if (shown(element)) look(element, element.getBoundingClientRect());
        }
        for (const node of textNodes()) if (shown(node.parentElement)) boxes(node).forEach((box) => look(node.parentElement, box));
        return { pixels: most, at };
    };

    const pixels = (element, ...properties) => {
        const style = getComputedStyle(element);
        return properties.reduce((sum, property) => sum + parseFloat(style[property]), 0);
    };
    const around = (element) =>
        pixels(element, "paddingTop", "paddingBottom", "borderTopWidth", "borderBottomWidth");

    // How Outlook, where Word renders and the padding of a link is ignored, comes to the shape of the button. Word
    // itself is not here: this looks for the known means.
    const shape = (link) => {
        const cell = link.closest("td, th");
        const coloured = cell?.hasAttribute("bgcolor");
        const styles = [link, cell].map((element) => element?.getAttribute("style") ?? "");
        if (/<v:(round)?rect\b/i.test(cell?.innerHTML ?? "")) return "VML";
        if (coloured && styles.some((style) => /mso-padding-alt\s*:\s*[1-9]/.test(style))) return "mso-padding-alt";
        if (coloured && pixels(cell, "paddingTop") >= 8) return "padding of the cell";
        if (pixels(link, "borderTopWidth") >= 8 || (cell && pixels(cell, "borderTopWidth") >= 8)) return "thick border";
        return "";
    };

    // A button is a link with room of its own, or all that stands in a coloured cell.
    const links = () =>
        [...document.querySelectorAll("a[href]")].filter((link) => {
            const cell = link.closest("td[bgcolor]");
            const alone = cell && words(cell.textContent) === words(link.textContent);
            return shown(link) && words(link.textContent) && (around(link) > 0 || alone);
        });

    const buttons = () =>
        links().map((link) => ({
            ...reading(link, link.textContent),
            href: link.getAttribute("href"),
            height: link.getBoundingClientRect().height,
            shape: shape(link),
            after: [...textNodes()]
                .filter((node) => visible(node) && link.compareDocumentPosition(node) === Node.DOCUMENT_POSITION_FOLLOWING)
                .map((node) => node.data)
                .join("")
                .replace(/\s+/g, ""),
        }));

    const withoutStyleElements = () => document.querySelectorAll("style, link").forEach((element) => element.remove());

    const withoutCssBackgrounds = () => {
        withoutStyleElements();
        for (const { style } of document.querySelectorAll("[style]")) {
            [...style].filter((property) => property.startsWith("background")).forEach((property) => style.removeProperty(property));
        }
    };

    const withoutPictures = () => document.querySelectorAll("img").forEach((image) => (image.src = "data:,"));

    // The proxy of a mail program that makes mails dark by itself: light backgrounds and dark text change sides.
    const forcedDark = () => {
        const turned = ({ r, g, b, a }, when) => {
            const [low, high] = [Math.min(r, g, b), Math.max(r, g, b)];
            const lightness = (low + high) / 510;
            if (!when(lightness) || a === 0) return null;
            // Same hue and saturation at lightness 1 - l (HSL): every channel moves by the same amount.
            const shift = 255 - low - high;
            return `rgba(${r + shift}, ${g + shift}, ${b + shift}, ${a})`;
        };
        const changes = [...document.querySelectorAll("html, body, body *")].map((element) => {
            const style = getComputedStyle(element);
            const behind = element === document.documentElement ? css(background(element)) : style.backgroundColor;
            const rgb = behind.startsWith("#")
                ? { r: parseInt(behind.slice(1, 3), 16), g: parseInt(behind.slice(3, 5), 16), b: parseInt(behind.slice(5), 16), a: 1 }
                : colour(behind);
            return [element, turned(rgb, (l) => l > 0.5), turned(colour(style.color), (l) => l < 0.5), style.color];
        });
        for (const [element, behind, ink, before] of changes) {
            if (behind) element.style.setProperty("background-color", behind, "important");
            element.style.setProperty("color", ink ?? before, "important");
        }
    };

    const preheader = () => {
        const first = textNodes().next().value;
        if (!first || visible(first)) return "";
        let hidden = first.parentElement;
        while (hidden.parentElement !== document.body && !shown(hidden.parentElement)) hidden = hidden.parentElement;
        return words(hidden.textContent);
    };

    const structure = () => {
        const headings = [...document.querySelectorAll("h1")].filter(shown);
        const paragraphs = [...document.querySelectorAll("p")].filter((p) => shown(p) && words(p.textContent));
        const first = headings.length
            ? paragraphs.find((p) => headings[0].compareDocumentPosition(p) & Node.DOCUMENT_POSITION_FOLLOWING)
            : paragraphs[0];
        const layout = [...document.querySelectorAll("table")].filter((table) => !table.querySelector("th, caption"));
        return {
            lang: document.documentElement.lang,
            dir: document.documentElement.dir,
            title: document.title,
            preheader: preheader(),
            headings: headings.map((heading) => words(heading.textContent)),
            body: first ? parseFloat(getComputedStyle(first).fontSize) : 0,
            noRole: layout.filter((table) => table.getAttribute("role") !== "presentation").map(name),
            noAlt: [...document.images].filter((image) => !image.hasAttribute("alt")).map(name),
            pictures: [...document.images].map((image) => ({
                at: name(image),
                alt: words(image.alt),
                area: image.getBoundingClientRect().width * image.getBoundingClientRect().height,
            })),
            links: [...document.querySelectorAll("a[href]")].map((link) => link.getAttribute("href")),
            darkCss: [...document.styleSheets]
                .filter((sheet) => !sheet.href) // a mail brings its own, and those of others cannot be read
                .some(({ cssRules }) =>
                    [...cssRules].some((rule) => /prefers-color-scheme:\s*dark/.test(rule.conditionText ?? "")),
                ),
        };
    };

    return { texts, places, coloursIn, indexed, overflow, buttons, structure, withoutStyleElements, withoutCssBackgrounds, withoutPictures, forcedDark };
})();
