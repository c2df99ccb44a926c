// A canvas on which the pixels to draw anew are painted. canvas.mask() is a string of 0 and 1, a
// character for each pixel in rows; '' where there is no image.
function prepare() {
  const canvas = element.querySelector('canvas');
  if (canvas.shown === canvas.dataset.src) return;
  canvas.shown = canvas.dataset.src;
  canvas.mask = () => '';
  if (!canvas.dataset.src) return;
  const image = new Image();
  image.onload = () => begin(canvas, image);
  image.src = canvas.dataset.src;
}

function begin(canvas, image) {
  const width = image.naturalWidth, height = image.naturalHeight;
  const painted = new Uint8Array(width * height), context = canvas.getContext('2d');
  canvas.width = width;
  canvas.height = height;
  canvas.classList.add('ready');

  function show() {
    context.drawImage(image, 0, 0);
    context.fillStyle = 'rgba(249, 115, 22, 0.72)';
    painted.forEach((on, i) => on && context.fillRect(i % width, Math.floor(i / width), 1, 1));
  }

  function paint(event) {
    if (!(event.buttons & 1)) return;
    const box = canvas.getBoundingClientRect();
    const x = ((event.clientX - box.left) / box.width) * width;
    const y = ((event.clientY - box.top) / box.height) * height;
    const radius = Number(element.querySelector('.brush').value) / 2;
    for (let row = 0; row < height; row++)
      for (let column = 0; column < width; column++)
        if (Math.hypot(column + 0.5 - x, row + 0.5 - y) <= radius) painted[row * width + column] = 1;
    painted[Math.min(height - 1, Math.floor(y)) * width + Math.min(width - 1, Math.floor(x))] = 1;
    show();
    event.preventDefault();
  }

  canvas.onpointerdown = (event) => { canvas.setPointerCapture(event.pointerId); paint(event); };
  canvas.onpointermove = paint;
  element.querySelector('.clear').onclick = () => { painted.fill(0); show(); };
  canvas.mask = () => Array.from(painted).join('');
  show();
}

prepare();
watch('value', prepare);
