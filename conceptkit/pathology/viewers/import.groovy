// Imports the tiles and nuclei that conceptkit exported into the open image, and colours them by a measurement.
// Run > Run for project does it for every image of a project. QuPath 0.5 or later.

import qupath.lib.color.ColorMaps
import qupath.lib.gui.tools.MeasurementMapper

def folder = 'FOLDER'       // this export: change it when you move the folder
def measurement = null      // name of the measurement that is shown; null for the first one
def replace = false         // true: remove the detections that the image has

def contents = GsonTools.getInstance().fromJson(new File(folder, 'conceptkit.json').getText('UTF-8'), Map)
def server = getCurrentServer()
def place = new File(server.getURIs().iterator().next().getPath())
def named = contents.images.findAll { it.image == place.getName() }
if (named.size() > 1) {     // images of one name: the one in the same folder
    named = named.findAll { it.path.replace('\\', '/').endsWith(place.getParentFile().getName() + '/' + it.image) }
}
if (named.size() != 1) {
    println "conceptkit: nothing was exported for ${place.getName()}"
    return
}
def entry = named[0]
if (server.getWidth() != (entry.width as int) || server.getHeight() != (entry.height as int)) {
    println "conceptkit: ${place.getName()} has ${server.getWidth()} x ${server.getHeight()} pixels here and " +
            "${entry.width as int} x ${entry.height as int} in the export: it is another image, or opened with --no-crop"
    return
}
if (replace) {
    clearDetections()
}
importObjectsFromFile(new File(folder, entry.file).getAbsolutePath())
fireHierarchyUpdate()
println "conceptkit: ${entry.objects as int} objects imported into ${place.getName()}"

def names = contents.measurements.collect { it.name }
println "conceptkit: measurements are ${names.join(', ')}"
def viewer = getCurrentViewer()
if (viewer != null && !names.isEmpty()) {
    def shown = contents.measurements.find { it.name == (measurement ?: names[0]) }
    if (shown == null) {
        println "conceptkit: there is no measurement ${measurement}"
        return
    }
    def colours = ColorMaps.getColorMaps().get('Viridis') ?: ColorMaps.getDefaultColorMap()
    def mapper = new MeasurementMapper(colours, shown.name, getDetectionObjects())
    mapper.setDisplayMinValue(shown.low as double)
    mapper.setDisplayMaxValue(shown.high as double)
    def options = viewer.getOverlayOptions()
    options.setMeasurementMapper(mapper)
    options.setFillDetections(true)
    options.setOpacity(0.6f)
}
