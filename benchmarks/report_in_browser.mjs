// Reports in headless Chromium: does the page ask for anything, run anything, overflow; how long to open and to sort; axe.
//
//     npm install --prefix /tmp/look axe-core puppeteer-core      (and Debian's chromium)
//     NODE_PATH=/tmp/look/node_modules node benchmarks/report_in_browser.mjs FOLDER/report.html ... [--pictures FOLDER]
//
// A line for each page, light, dark and narrow. With --pictures, what it looks like.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { basename, resolve } from "node:path";

const require = createRequire(import.meta.url);
const puppeteer = require("puppeteer-core");
const axe = readFileSync(require.resolve("axe-core/axe.min.js"), "utf8");
const asked = process.argv.slice(2), at = asked.indexOf("--pictures");
const pictures = at < 0 ? null : asked.splice(at, 2)[1];

const browser = await puppeteer.launch({ executablePath: "/usr/bin/chromium", args: ["--no-sandbox"] });
for (const path of asked.map((one) => resolve(one))) {
  for (const [light, width] of [["light", 1280], ["dark", 1280], ["light", 390]]) {
    const page = await browser.newPage(), odd = [];
    page.on("console", (one) => odd.push(one.text()));
    page.on("pageerror", (one) => odd.push(String(one)));
    page.on("dialog", (one) => { odd.push("a dialog"); one.dismiss(); });
    page.on("request", (one) => { if (!/^(file|data):/.test(one.url())) odd.push(one.url()); });
    await page.emulateMediaFeatures([{ name: "prefers-color-scheme", value: light }]);
    await page.setViewport({ width, height: 900 });
    let since = performance.now();
    await page.goto("file://" + path);
    const open = performance.now() - since;
    if (pictures) await page.screenshot({ path: `${pictures}/${basename(path, ".html")}-${light}-${width}.png`, fullPage: true });
    const over = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
    since = performance.now();
    const sorted = await page.evaluate(() => {
      const longest = [...document.querySelectorAll("table")].sort((a, b) => b.rows.length - a.rows.length)[0];
      const button = longest?.querySelector("th.n button");
      button?.click();
      return longest ? `${longest.rows.length} rows ${button?.parentElement.ariaSort}` : "no table";
    });
    const sort = performance.now() - since;
    await page.setBypassCSP(true); // or the page's own policy would keep the checker out
    await page.reload();
    await page.evaluate(axe);
    const found = await page.evaluate(() => window.axe.run());
    const bad = found.violations.map((one) => `${one.id}: ${one.nodes[0].html.slice(0, 100)}`);
    console.log(`${basename(path)} ${light} ${width}: open ${open.toFixed(0)} ms; sort ${sorted} ${sort.toFixed(0)} ms; ` +
      `wider than the window by ${over}; odd: ${odd.join(", ") || "nothing"}; ` +
      `axe: ${bad.join("; ") || `no violation of ${found.passes.length} rules`}`);
    await page.close();
  }
}
await browser.close();
