// Runs the two checkers that exist only for Node over the HTML files named as arguments and prints JSON:
// { "<file>": { "invalid": ["line 12: message (rule)"], "unsupported": [{ "feature", "clients", "lines" }] } }

import { readFile } from "node:fs/promises";

import { caniemail } from "caniemail";
import { HtmlValidate } from "html-validate";

const validator = new HtmlValidate({
    root: true,
    extends: ["html-validate:recommended", "html-validate:a11y"],
    rules: {
        "no-inline-style": "off", // Gmail drops <style> in some places, so every part carries its style with it
        "no-deprecated-attr": "off", // bgcolor and cellpadding are what Word understands, which renders for Outlook
        "prefer-tbody": "off", // a <tbody> means nothing to a table that is only there for the layout
        "void-style": "off", // <br> or <br/>: a matter of taste
        "doctype-style": "off", // the same
        "long-title": "off", // the title is the subject, and a course may have a long name
    },
});

const CLIENTS = ["gmail.*", "outlook.*", "apple-mail.*", "yahoo.*"];

async function invalid(html, file) {
    const report = await validator.validateString(html, file);
    return report.results
        .flatMap((result) => result.messages)
        .map(({ line, message, ruleId }) => `line ${line}: ${message} (${ruleId})`);
}

function unsupported(html) {
    const features = new Map();
    for (const [client, issues] of caniemail({ clients: CLIENTS, html }).issues.errors) {
        for (const { title, position } of issues) {
            const feature = features.get(title) ?? { clients: new Set(), lines: new Set() };
            feature.clients.add(client);
            if (position) feature.lines.add(position.start.line);
            features.set(title, feature);
        }
    }
    return [...features].map(([feature, { clients, lines }]) => ({
        feature,
        clients: [...clients].sort(),
        lines: [...lines].sort((one, other) => one - other),
    }));
}

const reports = {};
for (const file of process.argv.slice(2)) {
    const html = await readFile(file, "utf8");
    reports[file] = { invalid: await invalid(html, file), unsupported: unsupported(html) };
}
console.log(JSON.stringify(reports));
