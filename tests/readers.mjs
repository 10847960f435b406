// Reads the pictures that are named, with npm's stable-diffusion-image-metadata; prints a line of JSON each.
import { createRequire } from "node:module";

const { extract, parse } = createRequire(import.meta.url)("stable-diffusion-image-metadata");
for (const path of process.argv.slice(2)) {
  const [text] = await extract(path);
  console.log(JSON.stringify(parse(text)));
}
